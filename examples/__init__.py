"""Small applications that use Ritornello as its users do: over its public interface."""
