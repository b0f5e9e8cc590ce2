"""The command line `atelier`: runs actors and the gateway, starts local services, diagnoses, administers, generates documents."""
