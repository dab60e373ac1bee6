"""Who reads what, and bytes into batches: plan, reading ahead, decoding, augmentation."""
