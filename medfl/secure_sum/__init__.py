"""The sum of what the hospitals of a round contribute, and nothing else that would tell them apart.

The protocol of Bonawitz et al. (CCS 2017) for an active server, over integers: every site hides its
vector behind masks that cancel in the sum, and a threshold of sites unmasks the sum of those that
stayed. `medfl.secure_sum.party` is one site, `medfl.secure_sum.collector` the server; they share
values and messages, and neither knows the other.
"""
