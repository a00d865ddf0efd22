"""Use a model on a folder of images: an index of their embeddings, search, classification, contact sheets."""
