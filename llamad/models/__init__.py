"""Models that are to be had: fetching them, proving that they are whole, and which would be worth it here."""
