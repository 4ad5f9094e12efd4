"""An image on its way from file to batch: image_io, index, datasets, inputs, cache, augment, loader."""
