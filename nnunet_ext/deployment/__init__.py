"""Slim models to be shipped: nnU-Net model folders without what only training needs, checked and recorded."""
