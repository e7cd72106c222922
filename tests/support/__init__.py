"""What tests share: model files made on the spot, and the like."""
