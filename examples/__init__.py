"""Applications that use Atelier from outside, over HTTP. They import nothing of the product, and are in no wheel."""
