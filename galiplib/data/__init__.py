"""Pictures with captions: drawn birds, photographs, shards; batches of them."""
