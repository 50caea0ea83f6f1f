"""From a pruned model to an artifact that runs: built, compared, timed, kept."""
