package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
)

// pubFlags are the flags of pub as they were given.
type pubFlags struct {
	key     string
	headers []string
	lines   bool
	count   int
}

func (a *app) pubCommand() *cobra.Command {
	var f pubFlags
	cmd := &cobra.Command{
		Use:   "pub ADDRESS [BODY] [--key K] [-H name:value]… [--count N] | pub ADDRESS --lines",
		Short: "Publish a record, or every line of standard input as one",
		Long: "Publish BODY, or all of standard input, as one record, and print where it went.\n" +
			"With --lines every line of standard input is a record: it ends at LF, a CR is data,\n" +
			"an empty line is an empty record, and a last line without LF counts.",
		Args:                  argCount(1, 2),
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&f.key, "key", "", "the record's `key`")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "a header, `name:value`; may repeat")
	cmd.Flags().BoolVar(&f.lines, "lines", false, "publish each line of standard input")
	cmd.Flags().IntVar(&f.count, "count", 1, "publish the record `N` times")
	var m trunkline.Message
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		switch {
		case f.lines && len(args) > 1:
			return errors.New("--lines reads standard input; leave BODY out")
		case f.lines && cmd.Flags().Changed("count"):
			return errors.New("--lines and --count do not go together")
		case f.count < 1:
			return fmt.Errorf("--count %d is less than 1", f.count)
		}
		if cmd.Flags().Changed("key") {
			m.Key = []byte(f.key)
		}
		if m.Headers, err = readHeaders(f.headers); err != nil {
			return err
		}
		_, err = checkAddress(args[0], (*address.Address).ForPublish)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		if f.lines {
			return a.publishLines(ctx, c, args[0], m)
		}
		if len(args) == 2 {
			m.Value = []byte(args[1])
		} else {
			var err error
			if m.Value, err = a.readBody(ctx, c.Info().MaxPayload); err != nil {
				return err
			}
		}
		return a.publish(ctx, c, args[0], &m, f.count)
	})
	return cmd
}

func readHeaders(list []string) ([]trunkline.Header, error) {
	var headers []trunkline.Header
	for _, h := range list {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("-H %q is not name:value", h)
		}
		headers = append(headers, trunkline.Header{Name: name, Value: []byte(strings.Trim(value, " \t"))})
	}
	return headers, nil
}

// readBody reads all of standard input, at most what the server takes.
func (a *app) readBody(ctx context.Context, limit int) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(waiting(ctx, a.in), int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(body) > limit {
		return nil, fmt.Errorf("%w: standard input is longer than the %d bytes the server takes; --lines makes records of its lines",
			trunkline.ErrTooLarge, limit)
	}
	return body, nil
}

// resultsMax is how many results of --count are kept before they are printed.
const resultsMax = 1024

// publish sends m count times and prints each answer in order. It stops at the first failure; what was under way by
// then is waited for and printed too.
func (a *app) publish(ctx context.Context, c *trunkline.Client, to string, m *trunkline.Message, count int) error {
	var results []*trunkline.Result
	var failed error
	for i := 0; i < count && failed == nil; {
		var r *trunkline.Result
		if r, failed = c.Publish(ctx, to, m); failed == nil {
			results = append(results, r)
			i++
		}
		if len(results) == resultsMax || i == count || failed != nil {
			for _, r := range results {
				if err := a.printResult(ctx, r); err != nil && failed == nil {
					failed = err
				}
			}
			results = results[:0]
		}
	}
	return failed
}

func (a *app) printResult(ctx context.Context, r *trunkline.Result) error {
	ack, err := r.Wait(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(ack)
	}
	if ack.Offset < 0 {
		_, err = fmt.Fprintln(a.out, ack.Durability)
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s/%d@%d %s\n", ack.Topic, ack.Partition, ack.Offset, ack.Durability)
	return err
}

// tally counts results, which come in the order of the lines.
type tally struct {
	mu         sync.Mutex
	answered   int            // guarded; lines with a result
	durability map[string]int // guarded; acknowledged lines by what was reached
	failed     error          // guarded; the first failure, with its line
	stop       chan struct{}  // closed with the first failure
}

func (t *tally) take(ack trunkline.Ack, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answered++
	switch {
	case err == nil:
		t.durability[ack.Durability]++
	case t.failed == nil:
		t.failed = fmt.Errorf("line %d: %w", t.answered, err)
		close(t.stop)
	}
}

// lastAnswersPatience is how long an interrupted run waits for what is under way.
const lastAnswersPatience = 2 * time.Second

// publishLines publishes each line of standard input with what m has besides. It stops at the first failure, waits for
// what is under way, and says on standard error what was acknowledged.
func (a *app) publishLines(ctx context.Context, c *trunkline.Client, to string, m trunkline.Message) error {
	start := time.Now()
	t := &tally{durability: make(map[string]int), stop: make(chan struct{})}
	lines := newLineReader(waiting(ctx, a.in), c.Info().MaxPayload)
	sent, size, failed := 0, uint64(0), error(nil)
	for failed == nil {
		select {
		case <-t.stop:
			failed = errStopped
			continue
		default:
		}
		if m.Value, failed = lines.next(); failed != nil {
			break
		}
		if failed = c.PublishFunc(ctx, to, &m, t.take); failed != nil {
			failed = fmt.Errorf("line %d: %w", sent+1, failed)
			break
		}
		sent++
		size += uint64(len(m.Value))
	}
	flush, cancel := ctx, context.CancelFunc(func() {})
	if ctx.Err() != nil {
		flush, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastAnswersPatience)
	}
	defer cancel()
	unflushed := c.Flush(flush)
	if unflushed != nil {
		c.Close() // gives every line its result
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a.note("%s", t.summary(sent, size, time.Since(start)))
	switch {
	case t.failed != nil: // the earlier line
		return t.failed
	case failed != io.EOF:
		return failed
	}
	return unflushed
}

// errStopped stands for the failure that the tally has.
var errStopped = errors.New("stopped")

func (t *tally) summary(sent int, size uint64, took time.Duration) string {
	acknowledged := 0
	for _, n := range t.durability {
		acknowledged += n
	}
	return fmt.Sprintf("%d of %d records acknowledged%s, %s in %v",
		acknowledged, sent, reached(t.durability), humanize.IBytes(size), took.Round(time.Millisecond))
}

// reached lists the durabilities of acknowledged records in parentheses, behind a blank; empty when there are none.
func reached(durability map[string]int) string {
	if len(durability) == 0 {
		return ""
	}
	return " (" + strings.Join(slices.Sorted(maps.Keys(durability)), ", ") + ")"
}
