"""Images of prompts: which prompts, drawn how, kept where, by how many processes."""
