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

	ack, err := client.PublishSync(ctx, "greetings#world", &trunkline.Message{Value: []byte("hello")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ack.Topic, ack.Offset, ack.Durability)

	sub, err := client.Subscribe(ctx, "greetings@earliest")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Stop()
	for record, err := range sub.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s=%s\n", record.Key, record.Value)
		break
	}
}
