"""What comes before the device: label maps, manifests, images, augmentation, crops, loaders, smears."""
