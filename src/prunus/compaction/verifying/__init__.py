"""The gate: masked and compact model compared."""
