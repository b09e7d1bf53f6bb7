package metadatarpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

// watchAhead is how many messages are fetched before Next asks for them. When the reader is slower, the plugin waits,
// and a plugin that cannot keep what was missed ends the watch with ErrCompacted.
const watchAhead = 4

// watcher pumps a stream into a channel, because a stream's Recv cannot be given up without losing the stream.
type watcher struct {
	cancel context.CancelFunc
	events chan []metadata.Event
	closed chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	err    error // why the stream ended; set before events is closed
}

var _ metadata.Watcher = (*watcher)(nil)

func newWatcher(s *stream[metadatapb.WatchResponse], prefix string, after metadata.Revision) *watcher {
	w := &watcher{cancel: s.cancel, events: make(chan []metadata.Event, watchAhead), closed: make(chan struct{})}
	w.wg.Go(func() {
		defer close(w.events)
		defer s.cancel()
		w.err = w.pump(s, prefix, after)
	})
	return w
}

func (w *watcher) pump(s *stream[metadatapb.WatchResponse], prefix string, last metadata.Revision) error {
	lastKey := ""
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: the watch ended without a reason", ErrUnavailable)
		}
		if err != nil {
			return fromStatus(s.life, "watch", err)
		}
		events := make([]metadata.Event, 0, len(resp.GetEvents()))
		for _, pb := range resp.GetEvents() {
			ev := metadata.Event{Entry: entryFromPB(pb.GetEntry()), Deleted: pb.GetDeleted()}
			if err := checkEvent(ev, prefix, last, lastKey); err != nil {
				return fmt.Errorf("%w: watch %s: %w", ErrBadAnswer, prefix, err)
			}
			last, lastKey = ev.Revision, ev.Key
			events = append(events, ev)
		}
		if len(events) == 0 {
			continue
		}
		select {
		case w.events <- events:
		case <-s.life.Done():
			return ErrWatchClosed
		}
	}
}

// checkEvent compares an event with its predecessor: revisions grow, and within one the keys do.
func checkEvent(ev metadata.Event, prefix string, last metadata.Revision, lastKey string) error {
	if err := checkEntry(ev.Entry); err != nil && !ev.Deleted {
		return err
	}
	if err := metadata.CheckKey(ev.Key); err != nil {
		return err
	}
	switch {
	case !strings.HasPrefix(ev.Key, prefix):
		return fmt.Errorf("%s is not below the prefix", ev.Key)
	case ev.Deleted && len(ev.Value) != 0:
		return fmt.Errorf("%s was deleted and has a value", ev.Key)
	case ev.Revision < last, ev.Revision == last && (lastKey == "" || ev.Key <= lastKey):
		return fmt.Errorf("%s at revision %d comes after revision %d", ev.Key, ev.Revision, last)
	}
	return nil
}

// Next returns what came, waiting for it. It may not run concurrently with itself.
func (w *watcher) Next(ctx context.Context) ([]metadata.Event, error) {
	select {
	case <-w.closed:
		return nil, ErrWatchClosed
	default:
	}
	select {
	case events, ok := <-w.events:
		if !ok {
			return nil, w.err
		}
		return events, nil
	case <-w.closed:
		return nil, ErrWatchClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the watch and returns when its goroutine has.
func (w *watcher) Close() error {
	w.once.Do(func() { close(w.closed) })
	w.cancel()
	w.wg.Wait()
	return nil
}
