"""Plan, mesh, stage and job: frozen, JSON, checked; no search in here."""
