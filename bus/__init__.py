"""The post office: what happens to a delivery is decided here. The only room that speaks AMQP, S3 and to the database pool."""
