package tlfake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/clients/go/tlfake"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func start(t *testing.T, opts ...tlfake.Option) (context.Context, *tlfake.Server, *trunkline.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s, err := tlfake.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	c, err := trunkline.Dial(ctx, s.Address(), trunkline.WithoutRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return ctx, s, c
}

func TestFailRefusesAndFailAfterDoesNot(t *testing.T) {
	ctx, s, c := start(t)
	publish := func() error {
		_, err := c.PublishSync(ctx, "t", &trunkline.Message{Value: []byte("x")})
		return err
	}
	s.Fail(errcode.StorageFull, 2)
	s.FailAfter(errcode.StorageUnknown, 1)
	for i, want := range []error{trunkline.ErrUnavailable, trunkline.ErrUnavailable, trunkline.ErrOutcomeUnknown, nil} {
		if err := publish(); !errors.Is(err, want) {
			t.Errorf("publish %d: %v; want %v", i, err, want)
		}
	}
	if info, err := c.TopicInfo(ctx, "t"); err != nil || info.Partitions[0].End != 2 {
		t.Errorf("%+v, %v: two publishes were carried out", info, err)
	}
	s.Fail(errcode.MetadataUnavailable, 1, line.Topic)
	if err := publish(); err != nil {
		t.Errorf("another verb: %v", err)
	}
	if _, err := c.Topics(ctx); !errors.Is(err, trunkline.ErrUnavailable) {
		t.Errorf("TOPIC: %v", err)
	}
	s.Fail(errcode.StorageFull, 5)
	s.Mend()
	if err := publish(); err != nil {
		t.Errorf("mended: %v", err)
	}
}

func TestCutAfterCarriesOutAndDoesNotAnswer(t *testing.T) {
	ctx, s, c := start(t)
	s.CutAfter(2)
	for i, want := range []error{nil, trunkline.ErrOutcomeUnknown} {
		if _, err := c.PublishSync(ctx, "t", &trunkline.Message{}); !errors.Is(err, want) {
			t.Errorf("publish %d: %v; want %v", i, err, want)
		}
	}
	other, err := trunkline.Dial(ctx, s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if info, err := other.TopicInfo(ctx, "t"); err != nil || info.Partitions[0].End != 2 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestRefuseHangsUp(t *testing.T) {
	ctx, s, c := start(t)
	s.Refuse(true)
	if _, err := trunkline.Dial(ctx, s.Address(), trunkline.WithoutRetry()); !errors.Is(err, trunkline.ErrConnect) {
		t.Errorf("%v", err)
	}
	if _, err := c.Topics(ctx); err != nil {
		t.Errorf("a connection that is there: %v", err)
	}
	s.Disconnect()
	if err := c.Flush(ctx); err == nil {
		t.Error("a connection that was cut flushes")
	}
	s.Refuse(false)
	if c, err := trunkline.Dial(ctx, s.Address()); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestOptions(t *testing.T) {
	ctx, _, c := start(t, tlfake.WithPartitions(4), tlfake.WithMaxPayload(2000))
	if _, err := c.PublishSync(ctx, "t", &trunkline.Message{Value: make([]byte, 3000)}); !errors.Is(err, trunkline.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := c.PublishSync(ctx, "t/3", &trunkline.Message{}); err != nil {
		t.Errorf("%v", err)
	}
	_, _, strict := start(t, tlfake.WithoutAutoCreate())
	if _, err := strict.PublishSync(ctx, "t/0", &trunkline.Message{}); !errors.Is(err, trunkline.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestCloseEndsConnectionsThatWait has one that says nothing and one in a long poll.
func TestCloseEndsConnectionsThatWait(t *testing.T) {
	s, err := tlfake.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "TOPIC CREATE t\nFETCH t/0@0 wait=5m\n", "SUB t 1\n"} {
		nc, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, text+"TOPIC"); err != nil { // the last word has no end: it does not end the poll
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func Example() {
	ctx := context.Background()
	server, err := tlfake.New()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client, err := trunkline.Dial(ctx, server.Address())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	server.Fail(errcode.StorageUnavailable, 3) // the producer tries until it works
	ack, err := producer.ProduceSync(ctx, "orders/0", &trunkline.Message{Value: []byte("tea")})
	fmt.Println(ack.Topic, ack.Offset, err)
	// Output: orders 0 <nil>
}
