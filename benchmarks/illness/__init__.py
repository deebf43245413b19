"""How often relume is right: seeded training runs, half of them ill by construction, against what it says of them."""
