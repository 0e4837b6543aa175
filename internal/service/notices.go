package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// push is an image that a registry tells of, and the digest that was pushed; empty: it does not say. Event is what
// tells this notification from another one of the same; empty: nothing does.
type push struct {
	image, digest, event string

	target  string // the place of what it would become
	becomes string // by its name
	repo    name.Repository
	since   moment
}

// moment is when something was told of for the first time, by Service.arrived, and what the last request for the target
// was then, of whichever service; nil: that is not known, or it was just now.
type moment struct {
	order uint64
	last  *queue.Last
}

var digestPattern = regexp.MustCompile("^sha256:[0-9a-f]{64}$")

func newPush(image, digest, event string) push {
	if !digestPattern.MatchString(digest) {
		digest = ""
	}
	return push{image: image, digest: digest, event: event}
}

// notices are what notifications have asked for. A registry waits a second for an answer, or less, and sends the same
// again until it is taken, and all later ones after it. So what was begun is not ended by a registry that goes, and
// what the same notification asks for again is what was begun.
type notices struct {
	mu      sync.Mutex
	of      map[string]*notice
	failing map[string]failing
}

type notice struct {
	since   moment
	target  string
	host    string // the registry
	done    chan struct{}
	records []*queue.Record
	err     error // of what may pass
	ended   time.Time
}

// failing is since when, and until when, something has failed, and when it was told of.
type failing struct {
	first, last time.Time
	since       moment
}

const (
	maxNotices = 1000             // of a registry, at a time
	keptNotice = time.Minute      // what came of one
	keptNone   = 2 * time.Second  // what came of one if that is nothing
	sentAgain  = 5 * time.Minute  // later than that is another notification
	giveUp     = 10 * time.Minute // after which what still fails is left out, so that others are not held up for ever
)

// begin returns what comes of images of one target, which are asked for one after the other; nil if too many of their
// registry are.
func (n *notices) begin(
	key, target, host string, since moment, ask func(context.Context) ([]*queue.Record, error),
) *notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of == nil {
		n.of, n.failing = map[string]*notice{}, map[string]failing{}
	}
	ofHost := 0
	for k, old := range n.of {
		switch { // what came of a notification that nobody sent again is nothing to a later one
		case !old.ended.IsZero() && time.Since(old.ended) > keptNotice:
			delete(n.of, k)
		case old.host == host:
			ofHost++
		}
	}
	if known := n.of[key]; known != nil {
		return known
	}
	if ofHost >= maxNotices {
		return nil
	}
	begun := &notice{since: since, target: target, host: host, done: make(chan struct{})}
	n.of[key] = begun
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), askFor)
		defer cancel()
		records, err := func() (_ []*queue.Record, err error) {
			defer bug.Catch(&err)
			return ask(ctx)
		}()
		n.mu.Lock()
		defer n.mu.Unlock()
		begun.records, begun.err, begun.ended = records, err, time.Now()
		if err != nil {
			n.fails(key, begun.since)
		}
		for k, old := range n.of { // once something else is queued for the target, the same is asked for anew
			if len(records) > 0 && old.target == target && k != key && !old.ended.IsZero() {
				delete(n.of, k)
			}
		}
		close(begun.done)
	}()
	return begun
}

// keptOf returns what is kept of one; nil: nothing, or it is under way. It is forgotten if another one of its target is
// under way, whose outcome comes after it.
func (n *notices) keptOf(key string) *notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.of[key]
	if known == nil || known.ended.IsZero() {
		return nil
	}
	for k, other := range n.of {
		if k != key && other.target == known.target && other.ended.IsZero() {
			delete(n.of, key)
			return nil
		}
	}
	return known
}

// first returns when something was told of for the first time that is under way, kept or fails; false if it is new.
func (n *notices) first(key string) (moment, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if known := n.of[key]; known != nil {
		return known.since, true
	}
	f, ok := n.failing[key]
	return f.since, ok && time.Since(f.last) <= sentAgain
}

// drop forgets what is kept of one.
func (n *notices) drop(key string, kept *notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forget(key, kept)
}

// fails notes that something has failed, and since when it does.
func (n *notices) fails(key string, since moment) {
	now := time.Now()
	f, ok := n.failing[key]
	if !ok || now.Sub(f.last) > sentAgain {
		if len(n.failing) >= maxNotices { // what has failed for the shortest time has the least to lose
			latest := ""
			for k, other := range n.failing {
				if latest == "" || other.first.After(n.failing[latest].first) {
					latest = k
				}
			}
			delete(n.failing, latest)
		}
		f.first, f.since = now, since
	}
	f.last = now
	n.failing[key] = f
}

// taken returns the error of what came of images if it is worth being sent again.
func (n *notices) taken(key string, answered *notice) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if answered.err == nil {
		delete(n.failing, key)
		return nil
	}
	n.forget(key, answered)
	n.fails(key, answered.since)
	if time.Since(n.failing[key].first) > giveUp {
		delete(n.failing, key)
		logrus.Errorf("left out, since it has failed for %s: %v", giveUp, answered.err)
		return nil
	}
	return answered.err
}

// forget has the same asked for anew next time.
func (n *notices) forget(key string, answered *notice) {
	if n.of[key] == answered {
		delete(n.of, key)
	}
}

// answered forgets what was taken.
func (n *notices) answered(begun map[string]*notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, a := range begun {
		n.forget(key, a)
	}
}

// askAll queues what a notification names. A registry tells of everything that is pushed to it, results among it, so
// what no rule allows is left out; the registry is to send again what could not be done.
func (s *Service) askAll(ctx context.Context, images []push) (int, any, error) {
	if len(images) > maxImages {
		return 0, nil, refuse(http.StatusBadRequest, "the notification names more than %d images", maxImages)
	}
	begun := map[string]*notice{}
	var keys []string
	wait := s.o.AnswerIn
	if wait == 0 {
		wait = DefaultAnswerIn
	}
	for _, same := range byTarget(s.ruled(images)) {
		key := ""
		for _, p := range same {
			key += fmt.Sprintf("%q %q %.100q ", p.image, p.digest, p.event)
		}
		if slices.ContainsFunc(same, func(p push) bool { return p.digest == "" }) {
			// The same may be said of another push: it is asked for each time, however long it takes.
			key, wait = fmt.Sprintf("%s %d", key, s.pushes.Add(1)), askFor
		}
		if kept := s.notices.keptOf(key); kept != nil {
			holds, err := s.holds(ctx, kept, same)
			if err != nil {
				return 0, nil, refuse(http.StatusServiceUnavailable, "asking the queue: %w", err)
			}
			if !holds {
				s.notices.drop(key, kept)
			}
		}
		if first, ok := s.notices.first(key); ok { // it is sent again: others came after it
			for i := range same {
				same[i].since = first
			}
		}
		since := same[0].since
		if since.last == nil {
			if last, err := s.o.Queue.Last(ctx, same[0].becomes, s.o.Plan.Insecure); err == nil {
				since.last = &last
			}
		}
		n := s.notices.begin(key, same[0].target, same[0].repo.RegistryStr(), since,
			func(ctx context.Context) ([]*queue.Record, error) {
				return s.askEach(ctx, same)
			})
		if n == nil {
			return 0, nil, refuse(http.StatusServiceUnavailable, "too many images are being looked at")
		}
		begun[key], keys = n, append(keys, key)
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	for _, n := range begun {
		select {
		case <-n.done:
		case <-late.C:
			return 0, nil, refuse(http.StatusServiceUnavailable, "what was pushed is being looked at: send this again")
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
	asked := []conversion{}
	var failed error
	for _, key := range keys {
		for _, r := range begun[key].records {
			asked = append(asked, told(r))
		}
		if err := s.notices.taken(key, begun[key]); failed == nil {
			failed = err
		}
	}
	if failed != nil { // what was taken is answered when the rest is, and not asked for again
		return 0, nil, failed
	}
	s.notices.answered(begun)
	return http.StatusAccepted, map[string]any{"conversions": asked}, nil
}

// holds reports whether what came of a notification is what would come of it now: nothing was requested for the target
// since, here or elsewhere.
func (s *Service) holds(ctx context.Context, kept *notice, of []push) (bool, error) {
	if len(kept.records) == 0 {
		return kept.err != nil || time.Since(kept.ended) < keptNone && !s.leads(ctx, of), nil
	}
	last, err := s.o.Queue.Last(ctx, of[0].becomes, s.o.Plan.Insecure)
	return last.Is(kept.records[len(kept.records)-1]), err
}

// leads reports whether a tag has by now what was pushed to it.
func (s *Service) leads(ctx context.Context, of []push) bool {
	ctx, cancel := context.WithTimeout(ctx, DefaultAnswerIn/2)
	defer cancel()
	for _, p := range of {
		ref, err := image.ParseName(p.image, s.o.Plan.Insecure)
		if err != nil {
			continue
		}
		if digest, err := registry.ResolveTag(ctx, image.InRegistry(ref), s.o.Image); err == nil && digest == p.digest {
			return true
		}
	}
	return false
}

// postpone keeps an image until there is room. It reports false if there are too many.
func (s *Service) postpone(ctx context.Context, p push) (bool, error) {
	last, err := s.o.Queue.Last(ctx, p.becomes, s.o.Plan.Insecure)
	if err != nil {
		return false, refuse(http.StatusServiceUnavailable, "asking the queue: %w", err)
	}
	return s.later.put(p.target, &postponed{image: p.image, repo: p.repo, order: p.since.order, last: last}), nil
}

// askEach asks for images one after the other. One that fails keeps none of the others from being asked for.
func (s *Service) askEach(ctx context.Context, images []push) (records []*queue.Record, failed error) {
	for _, p := range images {
		r, err := s.ask(ctx, p.image, p.digest, p.since, nil)
		kept := false
		if many := err; errors.Is(many, errMany) {
			if kept, err = s.postpone(ctx, p); err == nil {
				err = many
			}
		}
		var refused *refusal
		switch {
		case err == nil && r != nil:
			records = append(records, r)
		case err == nil: // something that was told of later is requested
		case kept:
			logrus.Infof("asked for later: %v", err)
		case errors.Is(err, errMany):
			logrus.Errorf("lost, since more than %d pushes wait for room: %.200q", maxLaterOfOne, p.image)
			s.metrics.refused.WithLabelValues(strconv.Itoa(http.StatusTooManyRequests)).Inc()
		case errors.As(err, &refused) && !passes(err):
			logrus.Infof("left out: %v", err)
			s.metrics.refused.WithLabelValues(strconv.Itoa(refused.code)).Inc()
		case failed == nil:
			failed = err
		}
	}
	return records, failed
}

// ruled leaves out what no rule allows, of which registries tell as well, and finds what the rest would become.
func (s *Service) ruled(images []push) (list []push) {
	for _, p := range images {
		ref, err := image.ParseName(p.image, s.o.Plan.Insecure)
		if err == nil {
			var rule *plan.Entry
			var becomes plan.Image
			if rule, becomes, err = s.o.Plan.Rule(ref); err == nil && rule != nil {
				p.since.order = s.arrived.Add(1)
				p.repo, p.becomes = ref.Context(), becomes.Target
				p.target = p.image // asking tells what is wrong with a target that is no name
				if target, err := image.ParseName(becomes.Target, s.o.Plan.Insecure); err == nil {
					p.target = targetPlace(target)
				}
				list = append(list, p)
				continue
			}
		}
		logrus.Infof("left out, since no rule allows it: %.200q", p.image)
		s.metrics.refused.WithLabelValues(strconv.Itoa(http.StatusForbidden)).Inc()
	}
	return list
}

// targetPlace names a target, whatever its spelling.
func targetPlace(target name.Reference) string { return image.InRegistry(target).Place() }

// byTarget groups images that would become the same target: of these the last one counts. One that is named more often
// is asked for in its last place.
func byTarget(images []push) (groups [][]push) {
	group := map[string]int{} // by target
	last := map[string]int{}
	for i, p := range images {
		last[p.image] = i
	}
	for i, p := range images {
		if last[p.image] != i {
			continue
		}
		n, ok := group[p.target]
		if !ok {
			n = len(groups)
			group[p.target], groups = n, append(groups, nil)
		}
		groups[n] = append(groups[n], p)
	}
	return groups
}
