"""Masks for every picture of a folder or data set, and Kaggle's file of them."""
