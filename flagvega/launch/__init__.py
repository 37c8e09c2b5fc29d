"""From a job to scripts that can be printed, checked and started."""
