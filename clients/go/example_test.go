package trunkline_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := trunkline.Dial(ctx, os.Getenv("TRUNKLINE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	for _, text := range []string{"hello", "good night"} {
		ack, err := producer.ProduceSync(ctx, "greetings#world", &trunkline.Message{Value: []byte(text)})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ack.Topic, ack.Offset, ack.Durability)
	}
	if err := producer.Close(ctx); err != nil {
		log.Fatal(err)
	}

	consumer, err := client.NewConsumer(ctx, []string{"greetings@earliest"})
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s=%s\n", record.Key, record.Value)
		if string(record.Value) == "good night" {
			break
		}
	}
	fmt.Println("go on at", consumer.Positions())
}
