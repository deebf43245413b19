"""The rows of the catalogue, one file for each family; `catalogue.py` joins them."""
