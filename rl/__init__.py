"""Post-training: rewards, objectives and the stage that aligns a pre-trained model with them."""
