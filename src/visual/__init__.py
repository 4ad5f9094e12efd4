"""Pictures for people: panels, the page that shows them all, and the augmentation preview."""
