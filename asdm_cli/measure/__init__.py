"""What models cost and what their pictures are worth, each figure with the card of how it was made."""
