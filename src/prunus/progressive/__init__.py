"""The loop: prune, restore, retrain, judge, and again."""
