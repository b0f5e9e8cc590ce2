"""The craft that the seeing actors share: what they ask, how an answer is read, what is measured, and where pictures come from."""
