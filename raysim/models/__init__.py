"""timm models and the plugins that algorithms put into them."""
