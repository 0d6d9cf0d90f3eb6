package systest_test

import "github.com/rediscache/rediscache/internal/systest"

var (
	newPool             = systest.NewPool
	newCache            = systest.NewCache
	unhurried           = systest.Unhurried
	pools               = systest.Pools
	poolServer          = systest.PoolServer
	startPool           = systest.StartPool
	startPoolAt         = systest.StartPoolAt
	sizes               = systest.Sizes
	eventuallyClients   = systest.EventuallyClients
	clientIDs           = systest.ClientIDs
	requireReady        = systest.RequireReady
	borrowOne           = systest.BorrowOne
	borrowMany          = systest.BorrowMany
	giveBack            = systest.GiveBack
	requireSimultaneous = systest.RequireSimultaneous
	letRest             = systest.LetRest
	ping                = systest.Ping
)

const secret = systest.Secret
