"""Noisy Correspondence Rectifier, `train.recipe: ncr`: two nets that tell each other which pairs do not match.

Source: Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NeurIPS 2021) and its published
code; U-Eq. 26 and 27. After a warm-up with all negatives, each epoch begins with a division of the training pairs:
their losses under each net, a mixture of two Gaussians, and from it a label per pair and net, which scales the pair's
margin. Each net is trained with the other's division, and the mean of their similarities is what is evaluated.

Where this service decided otherwise than the published code:
- Labels are made once per epoch, from the same pass over the data as the division, not anew for each batch.
- Clean and noisy pairs share their batches, and both nets see the same batches, dropout and initial weights apart.
- A noisy pair that does not train yet keeps its place as a negative of others, as a caption or image like any.
- The warm-up counts among `train.epochs`, and gradients are clipped over both nets together.

- `mixture`: the two Gaussians.
- `division`: losses, posteriors, labels and margins of pairs; what of it is written.
- `recipe`: the training loop's side.
"""
