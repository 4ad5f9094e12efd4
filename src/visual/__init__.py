"""What people look at: panels, the page that shows them all, and the augmentation preview."""
