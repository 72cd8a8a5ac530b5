"""What several tests share: the tiny network and its compiled programs, fake data, and commands as processes."""
