"""What goes: units, scores, masks, and how masks are held."""
