"""The actions of the command line, one module each with a function ``act``."""
