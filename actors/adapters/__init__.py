"""Foreign message forms in: each adapter turns what another system publishes into a command of ours."""
