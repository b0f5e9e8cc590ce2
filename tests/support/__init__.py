"""What tests share: real services, fakes, processes and checks."""
