"""Networks and samples as users name them."""
