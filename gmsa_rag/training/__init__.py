"""Training: pretraining of a small base, autoencoding, knowledge extraction fine-tuning."""
