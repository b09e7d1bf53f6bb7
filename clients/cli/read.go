package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

func (a *app) subCommand() *cobra.Command {
	var count int
	var exit bool
	cmd := &cobra.Command{
		Use:   "sub ADDRESS [-c N] [--exit]",
		Short: "Follow a topic or partition and print its records, one a line",
		Long: "Follow ADDRESS, topic[/partition][@position], from now on unless it has a position:\n" +
			"an offset, earliest, latest, -N for the last N, a time, or 1h for an hour ago.\n" +
			"With --exit it stops at the end that the log had when it began.",
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	cmd.Flags().IntVarP(&count, "count", "c", 0, "stop after `N` records")
	cmd.Flags().BoolVar(&exit, "exit", false, "stop at the end of the log")
	var addr address.Address
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if cmd.Flags().Changed("count") && count < 1 {
			return fmt.Errorf("-c %d is less than 1", count)
		}
		addr, err = checkAddress(args[0], (*address.Address).ForRead)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		p := &printer{app: a, left: count, bounded: count > 0}
		if exit {
			return p.toTheEnd(ctx, c, addr)
		}
		return p.follow(ctx, c, args[0])
	})
	return cmd
}

func (a *app) getCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "get ADDRESS [-c N]",
		Short: "Print records from an address on, without waiting for more",
		Long: "Print up to N records, one a line, from ADDRESS, topic[/partition][@position], on: from the\n" +
			"earliest unless it has a position. Standard error says where the next get goes on.",
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	cmd.Flags().IntVarP(&count, "count", "c", 10, "number of records")
	cmd.PreRunE = func(_ *cobra.Command, args []string) error {
		if count < 1 {
			return fmt.Errorf("-c %d is less than 1", count)
		}
		_, err := checkAddress(args[0], (*address.Address).ForRead)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		p := &printer{app: a}
		next, err := p.get(ctx, c, args[0], count)
		if err == nil {
			a.note("next %s", strings.Join(next, " "))
		}
		return err
	})
	return cmd
}

// printer prints records.
type printer struct {
	*app
	left    int // records still to print
	bounded bool
}

// print prints one record; false when it was the last one asked for.
func (p *printer) print(r *trunkline.Record) (bool, error) {
	if p.json {
		if err := p.printJSON(r); err != nil {
			return false, err
		}
	} else {
		p.out.Write(r.Value) // a bufio.Writer keeps its first error
		if err := p.out.WriteByte('\n'); err != nil {
			return false, err
		}
	}
	p.left--
	return !p.bounded || p.left > 0, nil
}

// follow prints what comes. Damage in the log is reported and passed over, and makes the command fail in the end.
func (p *printer) follow(ctx context.Context, c *trunkline.Client, to string) error {
	sub, err := c.Subscribe(ctx, to)
	if err != nil {
		return err
	}
	defer sub.Stop()
	var damage, last error
	for r, err := range sub.Messages(ctx) {
		if last = err; err != nil {
			if notice, ok := err.(*trunkline.ServerError); ok { // bare: the subscription goes on
				p.note("trunkline: %v", notice)
				last = nil
			}
			if errors.Is(err, trunkline.ErrCorrupt) {
				damage = err
			}
			continue
		}
		more, err := p.print(r)
		if err != nil {
			return err
		}
		if !more {
			return damage
		}
		if sub.Buffered() == 0 { // the next one may be long in coming
			if err := p.out.Flush(); err != nil {
				return err
			}
		}
	}
	return last
}

// toTheEnd prints, partition after partition, what lies below the high watermarks of now.
func (p *printer) toTheEnd(ctx context.Context, c *trunkline.Client, addr address.Address) error {
	topic, err := c.TopicInfo(ctx, string(addr.Topic))
	if err != nil {
		return err
	}
	if addr.Position.Kind == address.None {
		p.note("trunkline: %s begins at its end unless it has a position; add @earliest to read what is there", addr)
		addr.Position.Kind = address.Latest
	}
	found := false
	for i := range topic.Partitions {
		part := &topic.Partitions[i]
		if addr.Partition != partition.None && addr.Partition != part.Partition {
			continue
		}
		found = true
		if part.Log == nil {
			return fmt.Errorf("%s/%d: %w", topic.Name, part.Partition, &trunkline.ServerError{Code: part.Error, Text: "the partition is not there now"})
		}
		from := addr
		from.Partition = part.Partition
		if more, err := p.until(ctx, c, from, part.Log); err != nil || !more {
			return err
		}
	}
	if !found {
		return &trunkline.ServerError{Code: errcode.UnknownPartition,
			Text: fmt.Sprintf("topic %s has the partitions 0 to %d, not %d", topic.Name, len(topic.Partitions)-1, addr.Partition)}
	}
	return nil
}

// until prints one partition's records below its high watermark. It reads with GET, which tells where it ended: a
// subscription would wait for a record that may never come where a position lies beyond the last one.
func (p *printer) until(ctx context.Context, c *trunkline.Client, from address.Address, log *trunkline.Log) (more bool, err error) {
	for next := log.Start; next < log.HighWatermark; {
		reading, err := c.Get(ctx, from.String(), int(log.HighWatermark-next))
		if err != nil {
			return false, err
		}
		more, err := p.readBelow(ctx, reading, log.HighWatermark)
		addresses := reading.Next()
		reading.Close()
		if err != nil || !more {
			return more, err
		}
		if addresses == nil { // it was left at the high watermark
			return true, nil
		}
		after, err := address.Parse([]byte(strings.Join(addresses, " ")))
		if err != nil || after.Position.Kind != address.Offset || after.Partition != from.Partition {
			return false, fmt.Errorf("%w: GET %s goes on at %q", trunkline.ErrProtocol, from, addresses)
		}
		reached := trunkline.Offset(after.Position.N)
		if from.Position.Kind == address.Offset && reached <= next && reached < log.HighWatermark {
			return false, fmt.Errorf("%s has no records before %d, though its high watermark is %d", from, reached, log.HighWatermark)
		}
		from, next = after, reached
	}
	return true, nil
}

// readBelow prints a reading's records with offsets below end.
func (p *printer) readBelow(ctx context.Context, reading *trunkline.Reading, end trunkline.Offset) (more bool, err error) {
	var last error
	for r, err := range reading.Messages(ctx) {
		if last = err; err != nil {
			continue
		}
		if r.Offset >= end {
			return true, nil
		}
		if more, err := p.print(r); err != nil || !more {
			return false, err
		}
	}
	return true, last
}

// get prints up to count records and returns where to go on.
func (p *printer) get(ctx context.Context, c *trunkline.Client, from string, count int) ([]string, error) {
	reading, err := c.Get(ctx, from, count)
	if err != nil {
		return nil, err
	}
	defer reading.Close()
	var last error
	for r, err := range reading.Messages(ctx) {
		if last = err; err != nil {
			continue
		}
		if _, err := p.print(r); err != nil {
			return nil, err
		}
	}
	return reading.Next(), last
}
