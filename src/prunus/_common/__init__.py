"""What every floor needs, once each."""
