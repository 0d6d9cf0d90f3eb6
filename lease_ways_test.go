package rediscache_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
	"github.com/stretchr/testify/require"
)

// A refused way is retried after some time, because an ACL may change.
func TestARefusedWayIsRetriedLater(t *testing.T) {
	s := redistest.Start(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+systest.Secret, "~*", "+@all", "-@scripting", "-@transaction")
	var heard systest.ErrorsOf
	c := newCache(t, newPool(t, "redis://app:"+systest.Secret+"@"+s.Addr), rediscache.WithObserver(&heard))
	v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	leased := func() bool {
		var there bool
		key := fmt.Sprint(time.Now().UnixNano())
		require.NoError(t, systest.Second(v.GetOrLoad(t.Context(), key, func(context.Context) (int, error) {
			there = s.Do("EXISTS", systest.LeaseKey("", key)) == int64(1)
			return 1, nil
		})))
		require.EqualValues(t, 1, s.Do("EXISTS", key))
		return there
	}
	require.True(t, leased(), "nobody knows yet")
	require.False(t, leased())
	require.Error(t, heard.Take())
	c.AgeRefusals(time.Minute)
	require.True(t, leased())
	require.NoError(t, heard.Take(), "it was said before")
	require.False(t, leased())
	s.Do("ACL", "SETUSER", "app", "+@all")
	c.AgeRefusals(time.Minute)
	require.True(t, leased())
	require.True(t, leased(), "they work")
	require.NoError(t, heard.Take())
	s.Do("ACL", "SETUSER", "app", "-@scripting", "-@transaction")
	require.True(t, leased())
	require.False(t, leased())
	require.Error(t, heard.Take(), "it is news again")
}

// The success of one way does not delay the retry of a way that was refused.
func TestScriptsAreRetriedWhileTransactionsWork(t *testing.T) {
	s := redistest.Start(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+systest.Secret, "~*", "+@all", "-@scripting")
	c := newCache(t, newPool(t, "redis://app:"+systest.Secret+"@"+s.Addr))
	v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	refusals := func(key string) int {
		s.Do("CONFIG", "RESETSTAT")
		require.NoError(t, systest.Second(v.GetOrLoad(t.Context(), key, returns(1))))
		return s.CommandStats()["evalsha"].Rejected
	}
	require.Equal(t, 1, refusals("a"))
	c.AgeRefusals(50 * time.Second)
	require.Equal(t, 0, refusals("b"))
	c.AgeRefusals(10 * time.Second)
	require.Equal(t, 1, refusals("c"))
	require.Equal(t, 0, refusals("d"))
}
