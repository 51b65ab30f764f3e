"""The small trained model that ships with the package, and how it was made."""
