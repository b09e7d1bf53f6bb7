package lend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestExtentsHoldWholeBatchesWithinTheirBounds(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	for i := range 200 {
		mustAdd(t, l, fmt.Sprintf("v%d %s", i, strings.Repeat("x", 1000)), "second")
	}
	ctx := context.Background()
	for _, limit := range []int64{1, 5000, 100_000, 1 << 30} {
		for off := record.Offset(0); off < l.End(); {
			e, err := l.Extent(ctx, off, l.End(), limit)
			if err != nil {
				t.Fatal(err)
			}
			if e.Base > off || e.Next <= off || (off%2 == 0 && e.Base != off) {
				t.Fatalf("limit %d: [%d, %d) for %d", limit, e.Base, e.Next, off)
			}
			if e.Size > limit && e.Next-e.Base != 2 {
				t.Fatalf("limit %d: %d bytes in [%d, %d)", limit, e.Size, e.Base, e.Next)
			}
			off = e.Next
			e.Release()
		}
	}
	if e, err := l.Extent(ctx, 3, 4, 1<<20); err != nil || e.Next != 4 || e.Base != 2 {
		t.Errorf("up to 4: %+v, %v", e, err)
	} else {
		e.Release()
	}
	if _, err := l.Extent(ctx, l.End(), l.End(), 1<<20); !errors.Is(err, lend.ErrEnd) {
		t.Errorf("at the end: %v", err)
	}
}

func TestExtentIsSentAsItLies(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	for i := range 100 {
		mustAdd(t, l, fmt.Sprintf("v%d %s", i, strings.Repeat("x", 5000)))
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	got := make(chan []byte, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- nil
			return
		}
		all, _ := io.ReadAll(c)
		_ = c.Close()
		got <- all
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	e, err := l.Extent(context.Background(), 0, l.End(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Release()
	if err := e.SendTo(nc.(*net.TCPConn), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	file, err := os.ReadFile(b.data + "/logs/t-0/00000000000000000000.log")
	if err != nil {
		t.Fatal(err)
	}
	if sent := <-got; !bytes.Equal(sent, file) {
		t.Errorf("%d bytes were received, the file has %d", len(sent), len(file))
	}
}

func TestTrimMovesTheLogStartAndLetsOldSegmentsGo(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 200)
	for i := range 20 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	ctx := context.Background()
	old, err := l.NewReader(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := l.Stats().Segments
	start, err := l.Trim(ctx, 7)
	if err != nil || start != 7 {
		t.Fatalf("start %d, %v", start, err)
	}
	if s := l.Stats(); s.LogStart != 7 || s.Segments >= before {
		t.Errorf("%+v, before %d segments", s, before)
	}
	if _, err := l.NewReader(ctx, 6); !errors.Is(err, storage.ErrOffsetOutOfRange) {
		t.Errorf("below the start: %v", err)
	}
	if got := read(t, l, 7); len(got) != 13 || got[0] != "v7" {
		t.Errorf("read %q", got)
	}
	if _, err := old.Next(ctx, l.End()); err == nil {
		t.Error("a reader below the start goes on")
	}
	if _, err := l.Trim(ctx, l.End()+1); !errors.Is(err, storage.ErrOffsetOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if start, err = l.Trim(ctx, l.End()); err != nil || start != l.End() {
		t.Errorf("to the end: %d, %v", start, err)
	}
	mustAdd(t, l, "more")
	want(t, read(t, l, 20), "more")
	b.restartStore()
	want(t, read(t, l, 20), "more")
}

func TestRetentionByBytesTakesWholeSegments(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1000)
	const n = 100
	for i := range n {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	ctx := context.Background()
	start, err := l.Expire(ctx, 0, -1, l.End())
	if err != nil || start != 0 {
		t.Fatalf("without limits: %d, %v", start, err)
	}
	start, err = l.Expire(ctx, 0, 2000, l.End())
	if err != nil || start == 0 {
		t.Fatalf("start %d, %v", start, err)
	}
	// A segment goes when enough lies behind it, and the plugin learns of the active one's size a second late.
	if s := l.Stats(); s.Bytes < 2000 || s.Bytes > 4100 {
		t.Errorf("%d bytes are left", s.Bytes)
	}
	if got := read(t, l, start); len(got) != n-int(start) {
		t.Errorf("read %q", got)
	}
}

func TestTruncateTakesTheEndAndItsReadersKeepTheirs(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 300)
	for i := range 20 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	ctx := context.Background()
	if err := l.Truncate(ctx, 11, 3); err != nil {
		t.Fatal(err)
	}
	if l.End() != 11 || l.Epoch() != 3 {
		t.Fatalf("end %d, epoch %d", l.End(), l.Epoch())
	}
	mustAdd(t, l, "other")
	want(t, read(t, l, 9), "v9", "v10", "other")
	b.restartStore()
	mustAdd(t, l, "more")
	want(t, read(t, l, 10), "v10", "other", "more")
}
