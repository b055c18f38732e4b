"""The bus: Windrow's topics on Kafka, as every process of a site reads and writes them."""
