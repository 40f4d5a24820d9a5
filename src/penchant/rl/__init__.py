"""Learning from sampled answers: rollouts, rewards, KL penalties and advantages."""
