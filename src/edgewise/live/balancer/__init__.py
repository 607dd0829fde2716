"""The balancer: decides every request, and credits outcomes to decisions."""
