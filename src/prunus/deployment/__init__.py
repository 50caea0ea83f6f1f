"""From a pruned model to an artefact that runs: built, compared, timed, kept."""
