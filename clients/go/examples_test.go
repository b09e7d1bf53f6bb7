package trunkline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/clients/go/tlfake"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// connect returns a client of a server in memory, so that these examples run by themselves.
func connect(ctx context.Context, opts ...trunkline.Option) (*tlfake.Server, *trunkline.Client, func()) {
	server, err := tlfake.New()
	if err != nil {
		log.Fatal(err)
	}
	client, err := trunkline.Dial(ctx, server.Address(), opts...)
	if err != nil {
		log.Fatal(err)
	}
	return server, client, func() {
		client.Close()
		server.Close()
	}
}

// Most programs produce with a callback, and learn at the end what became of everything.
func ExampleProducer_Produce() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	producer, err := client.NewProducer(trunkline.WithCompression(trunkline.Zstd))
	if err != nil {
		log.Fatal(err)
	}
	failed := 0 // of this producer's one partition: callbacks come one at a time
	for i := range 1000 {
		message := trunkline.Message{Key: fmt.Appendf(nil, "user %d", i%7), Value: []byte("clicked")}
		err := producer.Produce(ctx, "clicks", &message, func(_ trunkline.Ack, err error) {
			if err != nil {
				failed++
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Close(ctx); err != nil { // waits for every outcome
		log.Fatal(err)
	}
	fmt.Println(failed, "failed")
	// Output: 0 failed
}

// Who must not have a record twice takes unknown outcomes over, and looks before sending again.
func ExampleRetryUnknown() {
	ctx := context.Background()
	server, client, done := connect(ctx)
	defer done()
	producer, err := client.NewProducer(trunkline.RetryUnknown(false))
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close(ctx)
	server.FailAfter(errcode.Timeout, 1)
	_, err = producer.ProduceSync(ctx, "payments/0", &trunkline.Message{Value: []byte("100 €")})
	switch {
	case errors.Is(err, trunkline.ErrOutcomeUnknown):
		fmt.Println("it may be there: look")
	case err != nil:
		fmt.Println("it is certainly not there:", err)
	}
	// Output: it may be there: look
}

// The positions are the caller's to keep; another consumer goes on there.
func ExampleConsumer_Positions() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	for i := range 5 {
		if _, err := client.PublishSync(ctx, "jobs", &trunkline.Message{Value: fmt.Appendf(nil, "job %d", i)}); err != nil {
			log.Fatal(err)
		}
	}
	positions := []string{"jobs@earliest"}
	for range 2 {
		consumer, err := client.NewConsumer(ctx, positions, trunkline.UntilLatest())
		if err != nil {
			log.Fatal(err)
		}
		n := 0
		for record, err := range consumer.Records(ctx) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(string(record.Value))
			if n++; n == 3 {
				break
			}
		}
		positions = consumer.Positions()
		fmt.Println(positions)
		consumer.Close()
	}
	// Output:
	// job 0
	// job 1
	// job 2
	// [jobs/0@3]
	// job 3
	// job 4
	// [jobs/0@5]
}

// Poll hands records over in slices.
func ExampleConsumer_Poll() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	messages := []*trunkline.Message{{Value: []byte("a")}, {Value: []byte("b")}, {Value: []byte("c")}}
	if _, err := producer.ProduceAll(ctx, "letters/0", messages...); err != nil {
		log.Fatal(err)
	}
	consumer, err := client.NewConsumer(ctx, []string{"letters@earliest"})
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	for n := 0; n < 3; {
		some, err := consumer.Poll(ctx, 100)
		if err != nil {
			log.Fatal(err)
		}
		for _, record := range some {
			fmt.Println(record.Offset, string(record.Value))
		}
		n += len(some)
	}
	// Output:
	// 0 a
	// 1 b
	// 2 c
}

// Who is done with a record before the next one comes lets its memory be used again, and copies what is kept.
func ExampleReuseRecords() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	for i := range 3 {
		if _, err := client.PublishSync(ctx, "sizes", &trunkline.Message{Value: bytes.Repeat([]byte("x"), 10*(i+1))}); err != nil {
			log.Fatal(err)
		}
	}
	consumer, err := client.NewConsumer(ctx, []string{"sizes@earliest"}, trunkline.UntilLatest(), trunkline.ReuseRecords())
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	total, largest := 0, []byte(nil)
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if total += len(record.Value); len(record.Value) > len(largest) {
			largest = bytes.Clone(record.Value)
		}
	}
	fmt.Println(total, len(largest))
	// Output: 60 30
}

// Seek goes back, or ahead, by an offset or a time.
func ExampleConsumer_Seek() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	if _, err := client.PublishSync(ctx, "log", &trunkline.Message{Value: []byte("one")}); err != nil {
		log.Fatal(err)
	}
	consumer, err := client.NewConsumer(ctx, []string{"log"}) // from now
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	if err := consumer.Seek(ctx, "log@1h"); err != nil { // an hour ago
		log.Fatal(err)
	}
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(record.Value))
		break
	}
	// Output: one
}

// A subscription has the server push what comes, from topics and live subjects.
func ExampleClient_Subscribe() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	sub, err := client.Subscribe(ctx, "weather.*")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Stop()
	if _, err := client.PublishSync(ctx, "weather.oslo", &trunkline.Message{Value: []byte("snow")}); err != nil {
		log.Fatal(err)
	}
	for record, err := range sub.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(record.Topic, string(record.Value))
		break
	}
	// Output: weather.oslo snow
}

// Get reads what is there now.
func ExampleClient_Get() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	if _, err := client.PublishSync(ctx, "notes", &trunkline.Message{Value: []byte("milk")}); err != nil {
		log.Fatal(err)
	}
	reading, err := client.Get(ctx, "notes", 10)
	if err != nil {
		log.Fatal(err)
	}
	for record, err := range reading.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(record.Value))
	}
	fmt.Println(reading.Next())
	// Output:
	// milk
	// [notes/0@1]
}

// Topics are made, changed, looked at and deleted.
func ExampleClient_CreateTopic() {
	ctx := context.Background()
	_, client, done := connect(ctx)
	defer done()
	config := trunkline.TopicConfig{Partitions: 3, Settings: map[string]string{"retention.time": "30d"}}
	if err := client.CreateTopic(ctx, "orders", config); err != nil {
		log.Fatal(err)
	}
	if err := client.CreateTopic(ctx, "orders", config); errors.Is(err, trunkline.ErrExists) {
		fmt.Println("it is there already")
	}
	info, err := client.TopicInfo(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Name, len(info.Partitions), info.Settings["retention.time"])
	if err := client.DeleteTopic(ctx, "orders"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// it is there already
	// orders 3 30d
}

// Hooks feed whatever counts and measures.
func ExampleWithHooks() {
	ctx := context.Background()
	written := make(chan int, 1)
	_, client, done := connect(ctx, trunkline.WithBackoff(10*time.Millisecond, time.Second), trunkline.WithHooks(trunkline.Hooks{
		Produced: func(p trunkline.Produced) { written <- p.Records },
	}))
	defer done()
	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	if _, err := producer.ProduceSync(ctx, "metrics/0", &trunkline.Message{Value: []byte("1")}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-written, "record written")
	// Output: 1 record written
}
